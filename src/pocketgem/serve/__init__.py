"""HTTP: other programs' JSON to requests, and events back to the JSON they expect."""
