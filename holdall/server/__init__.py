"""An OpenAI-compatible server over one engine, within a memory budget: what `holdall serve` runs.

    protocol   what the server needs of anything that generates: jobs in, events out, memory figures
    alone      that, over `holdall.engine.Engine`: one answer at a time, any kv method and budget
    batched    that, over `holdall.batching.Batch`: many answers at a time, contexts kept whole
    room       how much memory there is beside the weights, and what is in it
    worker     the one thread that generates, and the bounded queue before it
    ticket     a request's place in the queue
    answer     from tokens to text, up to a stop string
    service    requests to jobs: models, limits, tokens
    schemas    what requests and answers look like
    faults     everything that can go wrong, in OpenAI's shape
    guard      who may call, and how large a request may be
    stream     answers as server-sent events, and clients that go away
    metrics    figures for Prometheus, and the parts of the memory
    app        the routes, and the page (page.html)
    run        sockets, signals, and a shutdown in which answers are finished

Nothing here is imported until `serve` is called.
"""
