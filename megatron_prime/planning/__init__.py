"""What a run will need and take, from its configuration and each model's config.json: no GPU, no weights, no torch."""
