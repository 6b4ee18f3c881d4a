"""`canvit-gym benchmark`: evaluate policies and seeds on the same scenes, with records, statistics and a report."""
