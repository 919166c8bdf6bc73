"""The API's charges, matched with the images that they produced."""
