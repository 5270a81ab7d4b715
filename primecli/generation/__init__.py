"""From prompts to sampled responses."""
