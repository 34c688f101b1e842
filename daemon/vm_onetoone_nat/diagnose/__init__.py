"""Why a guest cannot be reached. Pure."""
