"""vLLM servers and the requests to them: the pool that deals requests, their ledgers, chat endpoints, ArmoRM."""
