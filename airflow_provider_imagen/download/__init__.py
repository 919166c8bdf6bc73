"""Image downloads from untrusted hosts: no API key, SSRF checks, and limits on size, time and redirects."""
