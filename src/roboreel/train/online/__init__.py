"""Learn from what the policy does, beside a recorded dataset or from nothing: `roboreel train --online-steps`."""
