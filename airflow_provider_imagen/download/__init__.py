"""The unpaid, untrusted wire: images from any host, without the API key, with limits, verified."""
