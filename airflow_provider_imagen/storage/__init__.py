"""Pictures at rest: checks, names, provenance, atomic writing, manifest. Knows nothing of Airflow."""
