"""The operator: pictures from templated prompts."""
