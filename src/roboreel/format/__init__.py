"""What is on disk: names, records, the file layer, the lock and the manifest. `docs/format.md` is the norm."""
