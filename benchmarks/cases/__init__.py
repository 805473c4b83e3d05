"""One file a piece of work: who does it, on which data, and what is to be reached."""
