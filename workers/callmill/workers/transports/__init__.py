"""HTTP client libraries behind one port."""
