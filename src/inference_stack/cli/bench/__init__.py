"""The load generator behind `istack bench serve`: prompts, arrivals, a lean HTTP client, and honest percentiles."""
