"""The history of the database's schema, one revision a file in versions/; run by Alembic.

`setback db upgrade` applies it. After changing guard/store/tables.py, with the new schema in mind:
`alembic revision --autogenerate -m "what changes"`, then read and finish what it wrote.
"""
