"""
The gallery: pages of pictures inside Airflow's web server.

``app`` answers requests, ``airflow_api`` asks Airflow as the visitor, ``records`` understands what tasks left,
``collection`` reads and remembers it, ``files`` and ``thumbnails`` bring bytes, ``pages`` makes HTML.
Imported by the web server only, when somebody first asks for a page.
"""
