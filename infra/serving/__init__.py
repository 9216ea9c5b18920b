"""vLLM servers and the requests to them: the pool of servers, ledgers, chat endpoints, ArmoRM."""
