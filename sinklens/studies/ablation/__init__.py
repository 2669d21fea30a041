"""Many sets of heads x interventions x texts, resumable, on one process or many: what ``sinklens ablate`` runs."""
