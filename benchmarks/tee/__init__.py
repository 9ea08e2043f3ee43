"""The tee's metrics (`spec/tee.md` section 6) on a rig that counts: `make bench-tee`."""
