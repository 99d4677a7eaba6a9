"""Messages between the ranks: endpoints, a client of requests, a server of replies."""
