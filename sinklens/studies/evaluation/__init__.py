"""Task scores of a model as it is and under interventions, by lm-evaluation-harness."""
