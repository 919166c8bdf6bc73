"""Images at rest: inspection, names, provenance, atomic writes, manifest. Does not depend on Airflow."""
