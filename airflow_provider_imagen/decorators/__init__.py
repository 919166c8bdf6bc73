"""The ``@task.imagen`` decorator."""
