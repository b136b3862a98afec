"""Where rows come from, and how a row becomes tokens."""
