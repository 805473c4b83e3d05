"""How a key is stored: raw numbers, PNG files, video. One file a way, one contract (`base`)."""
