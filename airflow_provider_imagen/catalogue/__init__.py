"""The model catalogue: validates arguments, builds requests and prices them for each model. Pure, no network."""
