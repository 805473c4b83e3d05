"""Speed and memory, measured beside floors and peers: `make bench`. What is here stays importable without roboreel."""
