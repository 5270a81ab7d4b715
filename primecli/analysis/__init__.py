"""Looking at rollouts: search, drawing, statistics, lineage, audit."""
