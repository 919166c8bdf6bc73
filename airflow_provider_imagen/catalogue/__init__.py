"""What each model takes and costs: arguments are checked and turned into requests here. Pure, no network."""
