"""What interventions do to the predictions of a model, and where the sink goes."""
