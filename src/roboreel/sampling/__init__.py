"""Which frames are drawn, in which order, how often."""

from roboreel.sampling.weights import compute_sampler_weights, in_ranges

__all__ = ["compute_sampler_weights", "in_ranges"]
