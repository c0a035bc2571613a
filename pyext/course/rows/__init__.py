"""The rows of the course: each module here states one as ``ROW``. Nothing else lists them."""
