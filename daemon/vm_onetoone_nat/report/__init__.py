"""What `status` and `plan` show. Pure."""
