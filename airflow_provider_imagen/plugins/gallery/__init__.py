"""
The gallery: pages in Airflow's UI that show the generated images.

``routes`` has the routes, ``airflow_api`` calls Airflow's API with the visitor's session, ``records`` parses XComs and
manifests, ``collection`` reads and caches them, ``files`` and ``thumbnails`` load images, ``pages`` renders HTML.
Only the web server imports this package, on the first request.
"""
