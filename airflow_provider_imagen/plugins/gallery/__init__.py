"""
The gallery: pages in Airflow's UI that show the generated images.

``routes`` is the web application, with the routes in ``list_routes``, ``look_routes`` and ``file_routes``;
``request_parameters`` has the permissions and parameters that they require, and ``page_response`` turns what they found
into a page. From Airflow to a page, data passes through

- ``airflow_api``, which calls Airflow's API with the visitor's session, and ``permissions``, what the visitor may read;
- ``task_results``, which parses XComs and files, ``files`` and ``thumbnails``, which load images, and
  ``image_archive``, which writes a zip of them;
- ``collection`` and ``all_dags_reader``, which read and cache (``expiring_cache``) results of tasks and of all DAGs,
  and ``shared_readers``, the instances of these that all visitors share;
- ``run_results`` and ``all_dags``, which add results up, and ``image_search``, which finds and sorts what the URL asks
  for (``view_state``);
- ``comparison``, ``matrix``, ``charts``, ``review_page`` and ``snippet``, which prepare what one kind of page shows;
- ``pages``, which renders HTML, and ``progress``, which keeps pages up to date.

Only the web server imports this package, on the first request.
"""
