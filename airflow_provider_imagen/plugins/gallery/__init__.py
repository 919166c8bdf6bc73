"""
The gallery: pages in Airflow's UI that show the generated images.

``routes`` has the routes, ``airflow_api`` calls Airflow's API with the visitor's session, ``task_results`` parses
XComs and files, ``collection`` reads and caches them, ``run_results`` adds them up, ``view_state`` is what a URL asks
for, ``image_search`` finds and sorts that, ``files`` and ``thumbnails`` load images, ``image_archive`` writes a zip
of them, ``all_dags_reader`` and ``all_dags`` do the same for all DAGs that ``permissions`` lets the visitor see,
``charts`` lays out charts, ``pages`` renders HTML, ``progress`` keeps pages up to date, ``comparison`` and ``matrix``
set images side by side, ``review_page`` prepares a review for a person, and ``snippet`` writes the code that makes an
image again. Only the web server imports this package, on the first request.
"""
