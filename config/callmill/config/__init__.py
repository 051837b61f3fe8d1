"""Configuration: settings, API profiles, the Celery app, the servers. Import the modules; nothing is imported here."""
