"""Every configuration key, with its meaning and default.

A config file calls `get_config` and changes what it needs; the command line
changes the rest (`--config.ttt.learning_rate=1e-4`). A key that is not here is
an error. Lists are comma-separated strings; paths may be globs where it says
so; '' and 0 stand for "not given". Paths may contain `{workdir}`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The defaults, locked: no key can be added."""
  config = ml_collections.ConfigDict()
  # corpus | tokenize | train | export | build | serve | query | retrieve |
  # evaluate | generate | report | compare | benchmark | distances | plan |
  # pipeline
  config.job = 'evaluate'
  # Print documents, steps, memory and estimated time, then stop.
  config.dry_run = False
  config.seed = 0

  config.model = _section(
    # The causal LM: a Hugging Face directory, a hub id, or a directory of
    # Orbax checkpoints that `train` wrote.
    path='',
    revision='',  # Of a hub id.
    # Of activations; parameters are float32. auto: float32 on CPU, bfloat16 on
    # accelerators.
    dtype='auto',
    # Compute a block's activations again for the gradient instead of keeping
    # them: less memory, a third more time. On accelerators; not on CPU.
    remat=False,
  )
  config.mesh = _section(
    # Devices: documents spread over data, weights over model; 0: all that the
    # other leaves.
    data=1,
    model=1,
    # Of training: weights and the optimizer's state spread over data, too.
    fsdp=False,
  )
  config.distributed = _section(
    # Processes, on one host or many, that share the documents of `evaluate` or
    # the rows of `train`. Each is started with the same command and its own
    # number; all see the same files. mesh.* counts the devices of one process,
    # of `train` those of all.
    coordinator='',  # HOST:PORT at which process 0 waits for the others.
    processes=1,
    process=-1,  # This one, from 0 on; -1: $TTTNN_PROCESS.
    # Of TPU pods, SLURM and the like: JAX finds out all three by itself.
    auto=False,
    # Seconds to wait for others: at the start, and later while none of them
    # finishes a document. One that dies is not waited for.
    timeout=1800.0,
  )
  config.embedder = _section(
    path='',  # As model.path, of a RoBERTa.
    revision='',
    # Tokens of a text that are embedded, without the two special tokens;
    # 0: the model's positions less two.
    max_length=0,
  )
  config.corpus = _section(
    # JSONL files {"text", "meta"?}: comma-separated paths or globs. Also
    # .jsonl.zst, .jsonl.gz, and .parquet with columns of these names; so may
    # eval.documents and query.input be.
    train='',
    validation='',
    test='',
    # A malformed line stops the job, with its file and line: error. Or it is
    # left out of training and of every search, and a store's manifest counts
    # it: skip. Line numbers, which are the ids of documents, stay.
    on_error='error',
    # Where `build` writes what it maps of files that are compressed, once for
    # all stores that name this directory; '': within the store.
    cache='',
  )
  config.builtin = _section(
    # Of the `corpus` job, which writes the built-in corpus and tokenizers.
    max_bytes=0,  # Bytes of training text; 0: everything there is.
    shards=2,  # Training files.
    vocab_size=8192,  # Of the byte-level BPE tokenizers.
  )
  config.tokenize = _section(
    # Of the `tokenize` job, which makes WORKDIR/train.arrow and so on of what
    # corpus.train, .validation and .test name, here JSONL {"input", "output",
    # "id"?}. Its tokenizer is that of model.path, or if that is empty, of
    # train.init or train.tokenizer. Tokens of a text at most, with the end
    # token; more are cut off and counted: of inputs those farthest from the
    # output (a T5's last ones, a causal LM's first ones), of outputs the last.
    max_input=512,
    max_output=128,
  )
  config.pairs = _section(
    # Files that `tokenize` made: to train on; for `build` with store.key, which
    # stores the tokens of their outputs (paths or globs); to `evaluate`.
    train='',
    validation='',
    test='',
  )
  config.train = _section(
    # causal (language model) | masked (embedder) | pairs (the outputs of
    # pairs.train given their inputs, of a T5 or a causal LM).
    objective='causal',
    # Start from this model (as model.path) ...
    init='',
    revision='',
    # ... or, where it is empty, from scratch with this shape and tokenizer.
    model_type='gpt2',  # gpt2 | gpt_neo | roberta | t5
    layers=4,  # Of a T5, in the encoder and again in the decoder.
    width=256,
    heads=4,
    context=256,  # Positions of the model, in tokens; a T5 has no bound.
    tokenizer='',  # A Hugging Face directory or hub id.
    steps=1000,
    batch_size=16,  # Rows a step.
    # Parts of these that go through the model one after another: less memory,
    # the same step but for dropout.
    accumulation=1,
    sequence_length=0,  # Tokens a row; 0: the model's context.
    # The corpus is tokenized in pieces, files or 256 MiB of them. Training
    # begins when so many are, and mixes the rows of so many at a time, while
    # others are tokenized; 0: all of them. Processes that do it; 0: a fourth of
    # the cores, each with tokenizer threads of its own.
    window=0,
    workers=0,
    # Of `pairs`, tokens that inputs and outputs are padded to; 0: the limits
    # that pairs.train was made with.
    input_length=0,
    output_length=0,
    learning_rate=1e-3,
    warmup_steps=50,
    # After linear warm-up: constant | cosine (to a tenth) | step (times
    # decay_factor each decay_every steps).
    schedule='cosine',
    decay_every=0,
    decay_factor=0.1,
    weight_decay=0.01,
    clip_norm=1.0,
    dropout=False,  # At the rates of the model's config.json.
    mask_probability=0.15,  # Share of tokens that `masked` predicts.
    # bert: just that share of a row, of which 80 % read <mask>, 10 % a random
    # token, 10 % what is there | always: each token with that probability, and
    # all read <mask>, as Hardt & Sun's code has it.
    masking='bert',
    log_every=20,  # Steps between lines of history.jsonl.
    tensorboard=False,  # Also to WORKDIR/tensorboard; extra [tensorboard].
    # A profiler trace of the steps BEGIN:END, END not included, to
    # WORKDIR/profile; '': none.
    profile='',
    # Steps between validations, the best of which so far keeps its parameters
    # in WORKDIR/best; 0: only at the end.
    eval_every=0,
    eval_batches=8,
    checkpoint_every=100,  # Steps.
    keep=2,  # Checkpoints kept.
  )
  config.store = _section(
    path='',
    # A faiss factory string, and behind a ';' parameters of searches, such as
    # 'IVF4096,PQ64;nprobe=32'. `build` makes it from the vectors that are
    # there; several stand beside each other. '': Flat, or where there is none,
    # the only one.
    index='',
    # What is stored: '': embeddings of documents. Else of each of their tokens
    # what model.path has computed when it predicts it, as float16, with the
    # token: ffn_input (what the last block's MLP reads) | ffn_output (what that
    # adds) | final_hidden. model.dtype=auto is float32 then.
    key='',
    # Windows in which the model reads texts for that, as eval.window and
    # .stride; they need not be those of evaluations.
    window=0,
    stride=0,
    # l2 | ip (inner product) | cosine. Distances are Euclidean, minus the
    # product, or 1 minus the cosine: the nearest have the smallest.
    metric='l2',
    dtype='float32',  # Of the vectors of documents: float32 | float16.
    # False: only the Flat index holds them, as float32, once it is built.
    keep_vectors=True,
    # Who searches: a server on this host (faiss), the devices of the mesh,
    # which then hold all vectors (device), or the hosts of a Ray cluster
    # (cluster).
    search='faiss',
    # On the devices: float32 | bfloat16 | float16; answers are the same.
    device_dtype='float32',
    # On the devices: candidates by approx_min_k, which is faster on TPU and may
    # miss some; the run says how many.
    approximate=False,
    # The self-check after building refuses a recall@10 below this.
    min_recall=0.95,
    # The server's Unix socket; '': one that is derived from store.path and
    # .index, and where no server answers there, the driver starts one for the
    # run.
    address='',
  )
  config.build = _section(
    # Documents, or tokens, between two points of resumption; 0: 1024 documents,
    # 32768 tokens.
    block=0,
    # Documents of the embedder's full length that a device embeds at once; of
    # shorter ones as many more as have no more tokens. 0: 1 on CPU, elsewhere
    # 16. Of a store of tokens, windows of the model's context, or pairs of the
    # longest texts; 0: 2048 tokens on CPU, elsewhere 32768.
    batch_size=0,
    # Embed only a part, for many processes to build one store; once they are
    # through, `build` without these writes index and manifest. A part is one
    # file of corpus.train, counted from 0 (-1: all), and of these documents
    # begin..end - 1, line numbers counted from 0 (end 0: the last). Of a store
    # of tokens a part is a file.
    shard=-1,
    begin=0,
    end=0,
    # Flat index files that were made elsewhere over the same corpus files, one
    # each, in order: paths or globs. They are checked and used where they are,
    # and nothing is embedded.
    import_index='',
    # Who finds the centroids of an IVF index and assigns vectors to them: faiss
    # on the host, or JAX on its devices: host | device.
    coarse='host',
  )
  config.serve = _section(
    threads=0,  # Of the search; 0: all cores.
    max_batch=256,  # Queries of one search.
    # How long a search waits for more queries to go with it. What came during
    # the search before goes with it anyway.
    max_wait_ms=0.0,
    gpu=False,  # faiss searches on this machine's GPUs; extra [gpu].
  )
  config.cluster = _section(
    # Of store.search=cluster, extra [cluster]: actors on the hosts of a Ray
    # cluster, each with one shard of the store. HOST:PORT of its head, or auto:
    # the cluster of this host. '': `serve` starts one on this host alone; other
    # jobs use that, and where there is none, one of their own for the run.
    address='',
    replicas=1,  # Actors of a shard, on different hosts where there are.
    cpus=1.0,  # That Ray reserves for an actor, and by default its threads.
    # Seconds that an actor may take to answer, that a lost shard is waited for,
    # and that `serve` waits for all actors to be ready.
    timeout=60.0,
    # Go on without the shards that are lost, and mark the rows of results.
    # Otherwise a shard that nobody answers for is an error.
    allow_partial=False,
  )
  config.query = _section(
    action='search',  # search | status | shutdown
    text='',  # One text, or ...
    input='',  # ... a JSONL file of {"text", "doc_id"?}.
    output='',  # JSONL of the neighbours; '': a table on the terminal.
    # Over a store of tokens, what could follow a text is shown: the settings of
    # knn, by model.path. Of each of the retrieval.neighbors entries that are
    # shown, so many tokens before it.
    context=12,
  )
  config.retrieval = _section(
    neighbors=50,  # N
    # Write the neighbours to this JSONL, or read them from one instead of
    # searching: {"doc_id", "neighbors": [{"id", "distance", "text"?}]},
    # nearest first, L2 distances.
    save='',
    replay='',
    # Keep neighbours with min_distance <= distance < max_distance (L2; Q16);
    # 0: no bound. What they remove is not replaced.
    min_distance=0.0,
    max_distance=0.0,
    # Drop neighbours that have more than this share of the scored text's runs
    # of overlap_words words; 0: none is dropped.
    max_overlap=0.0,
    overlap_words=13,
    # Drop neighbours whose text is the document's own, for documents that are
    # themselves in the store; the next nearest take their place.
    exclude_self=False,
  )
  config.selection = _section(
    # Which neighbours to adapt to, retrieval.neighbors of a pool: knn (the
    # nearest) | sift (Huebotter et al. 2025, arXiv 2410.08020) | frank_wolfe
    # (HullFT: Khamis & Maalouf 2026, arXiv 2605.30337) | random |
    # farthest_first (the nearest in reverse, as Hardt & Sun 2024 tried).
    name='knn',
    # Nearest neighbours that the others than knn and farthest_first pick from;
    # 200 as both papers have it.
    pool=200,
    **{
      # Of sift, variance of the noise: the smaller, the less alike are its
      # picks; the larger, the nearer. 0.01 is its authors' default, Khamis &
      # Maalouf run it with 0.2.
      'lambda': 0.01
    },
    # Of sift, keep picks while sigma_n <= 1 / (alpha n); its paper has 0.15 to
    # 0.5; 0: keep all.
    alpha=0.0,
    # Train on repetitions of a text one after another, in the order of the
    # first ones, so that they can share gradients; frank_wolfe does anyway.
    group_repeats=False,
  )
  # base | ttt | dynamic_eval | in_context | interpolation | knn_lm | retomaton
  config.method = 'ttt'
  config.ttt = _section(
    learning_rate=2e-5,  # Hardt & Sun: 2e-5 for GPT-2, 5e-6 for GPT-Neo.
    weight_decay=0.0,  # AdamW on every parameter (Q2; the original: 0.01).
    adam_epsilon=1e-8,
    clip_norm=1.0,  # Global norm; 0: no clipping (Q3).
    # Training windows (Q8): a neighbour's tokens are cut into windows of
    # max_length tokens that begin every stride tokens; 0: the model's context.
    max_length=0,
    stride=0,
    max_windows=0,  # A neighbour's first windows only; 0: all (Q5).
    # A window of one token has no target: skip it, or take the AdamW step on a
    # zero gradient that the original takes (Q6): skip | step.
    short_windows='skip',
    # Adam's moments and count at a document's beginning: fresh, or carried on
    # from the document before (Q1). Carried on, the documents go in order, and
    # where eval.tasks names tasks, each task begins afresh.
    optimizer_state='fresh',
    reset_weights=True,  # False: documents adapt one on top of another (Q10).
    dropout=False,  # At the rates of the model's config.json, seeded (Q4).
    # A text that comes several times in a row, as selections may want it: every
    # so many of its steps make a gradient, the others use it again (Khamis &
    # Maalouf 2026). 1: all make their own. Above it max_windows must be 1.
    gradient_reuse=1,
    # full | lora | mlp_out (the layers out of the MLPs) | last:N (blocks). With
    # all but `full`, documents share what does not train.
    trainable='full',
    lora_rank=8,
    lora_alpha=16.0,
    lora_targets='attention,mlp',  # Linear layers of these parts.
    # Documents that adapt at once, each on its own copy of what trains; auto:
    # one on CPU, elsewhere what the memory holds.
    batch_documents='auto',
  )
  config.dynamic_eval = _section(
    # Training on the document's own first part (protocol split), with the
    # settings of ttt: this many passes, which is what eval.at counts. The paper
    # allows 50; its code takes 20 and reports 6 (Q33).
    steps=50,
  )
  config.in_context = _section(
    # Neighbours in front of documents that leave room for them: the end-of-text
    # token and as much as fits, nearest first (fixed); as in the paper, without
    # that token (as_described); as its code has it, the end of the farthest
    # (as_coded; Q31).
    variant='fixed',
    order='nearest_first',  # Or nearest_last, next to the document; of fixed.
  )
  config.interpolation = _section(
    # Share of the neighbours' token frequencies: a number from 0 to 1, or that
    # of 0, 0.01 .. 0.19 which is best on eval.validation (validation), or, as
    # published, for each task on its own test documents (test; Q32).
    alpha='validation',
  )
  config.knn = _section(
    **{
      # Of knn_lm and retomaton (Khandelwal et al. 2020): a store that `build`
      # made with store.key; '': store.path.
      'store': '',
      'neighbors': 1024,  # k, entries that are searched for each token.
      'lambda': 0.25,  # Weight of the neighbours' distribution.
      'temperature': 1.0,  # Of the softmax over minus squared distances.
      # To the stored keys, by which the nearest of more candidates are chosen:
      # refine. To them, of those that the index finds: exact. As the index
      # gives them, for which no stored keys are needed: index. The temperature
      # is one's own for each. The same over Flat.
      'distances': 'refine',
      # Of refine, entries that are searched for each of the k nearest that are
      # kept: more of them make up for an index that misses some.
      'refine': 1,
      # Documents, or pairs, are lines of the store, and their doc_id is the
      # line's number: leave out the entry that a token itself is. Protocol
      # whole.
      'drop_self': False,
      # To choose from on eval.validation, each with each, in place of the three
      # above, as '0.1,0.25,0.5'; '': what stands there. No k is above
      # neighbors. For retomaton they are what suits knn_lm.
      'lambdas': '',
      'temperatures': '',
      'ks': '',
      # Choose a lambda for each of so many bins, equally many tokens of
      # eval.validation in each, by the distance of the nearest neighbour
      # (Drozdov et al. 2022); 0: one for all.
      'bins': 0,
      # Such bins as they were chosen, in place of lambda: from which distance
      # on, and lambda, as '-inf:0.6,12.5:0.3,40.0:0.1'; '': lambda.
      'lambda_by_distance': '',
      # A directory that keeps what knn_lm found, a file a document, for runs
      # with another lambda, temperature or fewer neighbours; '': none.
      'cache': '',
    }
  )
  config.retomaton = _section(
    # Alon et al. 2022: pointers from the neighbours of the last token.
    min_knns=1.0,  # Search where there are fewer pointers; inf: always.
    max_knns=1024,  # Entries at most that pointers lead to.
    dedupe=True,  # What is searched and pointed at counts once.
    clusters=0,  # States, by k-means of keys; 0: each entry is its own.
  )
  config.eval = _section(
    documents='',  # JSONL of {"text", "meta"?, "doc_id"?}: paths or globs.
    # whole: the document is the query and is scored; split: its first part is
    # the query, the rest is scored (Q14, Q15).
    protocol='split',
    # The query is the first split_prefix tokens of a document that has at
    # least twice as many, else the first half; 0: the model's context.
    split_prefix=0,
    # Documents are scored in windows of so many tokens (0: the model's context)
    # that stand side by side, as rolling log-likelihood has them. Or that begin
    # every `stride` tokens, as in Hugging Face's guide to perplexity: the last
    # `stride` tokens of each are scored, of the first all; 0: side by side.
    window=0,
    stride=0,
    at='all',  # Neighbour counts to score at, as '0,1,5,10', or 'all' (Q13).
    # Globs of domains (meta.pile_set_name), whose documents stay in file order;
    # '': every document. Before them come tasks of the Pile, by name: pile_all
    # (the 22), pile_arxiv, or globs such as 'pile_pubmed-*'; each is shuffled
    # as in the original, with seed 1216 (Q26).
    tasks='',
    # Share of each pile_ task's documents after the shuffle; the original: 0.2
    # (Q47).
    portion=1.0,
    limit=0,  # The first documents of this choice; 0: all.
    # This process evaluates every world_size-th document of each pile_ task and
    # of all others together, from number rank on.
    rank=0,
    world_size=1,
    # A pile_ task that is named and of which there is no document, or of which
    # the portion leaves none: error | allow.
    missing_tasks='error',
    # As documents: those that interpolation.alpha, or lambda, temperature and
    # k of knn, are chosen on.
    validation='',
    # A document with a neighbour nearer than 1e-4, or with this share of the
    # document's runs of retrieval.overlap_words words, is left out of the
    # second table of the summary; 0: none is left out.
    near_duplicate=0.5,
    # Keep the log-likelihood of each token at each count, and the beginnings of
    # the neighbours' texts, in tokens.bin beside the rows: what the page of
    # `report` colours texts by, and shows of neighbours. Changes no row.
    save_tokens=False,
    # Documents between two checkpoints of what is carried on.
    checkpoint_every=10,
    # Running scores to WORKDIR/tensorboard, by documents done; extra
    # [tensorboard].
    tensorboard=False,
    # Of pairs.test: also write outputs for its inputs, by generate.max_tokens,
    # .beams and so on, and compare them with the outputs there are, by BLEU
    # (extra [mt]) and exact match.
    generate=False,
    bleu_tokenize='13a',  # How sacreBLEU finds words: 13a | intl | zh | char...
    # Pairs of the longest texts that are read at once, and inputs that are
    # written for; of shorter ones as many more as have no more tokens. 0: 2048
    # tokens and 8 inputs on CPU, elsewhere 32768 and 64.
    batch_size=0,
  )
  config.generate = _section(
    prompt='',  # One text, or ...
    input='',  # ... a JSONL file of {"text", "doc_id"?}.
    output='',  # A .jsonl of both texts a prompt; '': on the terminal.
    max_tokens=64,  # Of a text; it may end earlier.
    temperature=0.0,  # 0: the likeliest token, always.
    # Draw from the k likeliest tokens (0: all), and of those from the likeliest
    # that make up p of the distribution (1: all).
    top_k=0,
    top_p=1.0,
    # Of outputs of pairs (eval.generate), which are searched for, not drawn:
    # texts that compete for each input; 1: the likeliest token, always.
    beams=1,
    # A text's score is its log-likelihood / tokens ** this.
    length_penalty=1.0,
    # When the search of an input ends, once as many texts as beams have ended:
    # true (at once) | false (when the likeliest that goes on, were it to end
    # now, is no better) | never (were it to end at its best length).
    early_stopping='false',
  )
  config.compare = _section(
    # (name, {key: value}) a run: `evaluate` with its overrides of this config.
    runs=(),
    names='*',  # Globs of those that are run.
    # Tried on eval.validation for each run that trains; '': ttt.learning_rate
    # is taken as it is.
    learning_rates='1e-4,3e-4,1e-3,3e-3',
    validation_limit=0,  # The first documents of eval.validation; 0: all.
    reference='knn',  # The run that the others are compared with.
  )
  config.report = _section(
    # Work directories of evaluate or compare; '': the job's own.
    inputs='',
    title='',  # '': the names of the runs.
    # all: every document counts. faithful: as in the original's processing,
    # those with the median number of scores of their task (Q28, Q35).
    aggregation='all',
    # Published figures to put beside one's own, or to show alone where there is
    # no run: hardt_sun_2024. '': none.
    published='',
  )
  config.benchmark = _section(
    # What is measured: ttt (adapting to neighbours) | embed (embedding texts) |
    # search (finding neighbours) | select (choosing among them) | train (steps
    # on packed rows) | knn_lm (a store of tokens, made, searched and followed).
    name='ttt',
    # The script of another program that does the same, and the interpreter
    # that has its packages; '': none, and this one.
    rival='',
    python='',
    # ttt: small-1024 | small-128 (GPT-2 small, documents of so many tokens) |
    # tiny | mini; linear cost is shown on the last of them. embed: small (6
    # layers of 384) | base (12 of 768) | long (small, 2048 tokens) | mini.
    # search: full (200,000 vectors, and a host of 1,000,000) | mini. select:
    # full (64 pools of 200, 50 picks, 1024 dimensions) | mini. knn_lm: full
    # (GPT-2 small, 500,000 tokens) | middle | mini. train: roberta | gpt2 (4
    # layers of 256, 8192 ids) | roberta-50k | gpt2-50k | large (as GPT-2-large,
    # for accelerators) | mini | mini-gpt2.
    shapes='small-1024,small-128,tiny',
    # Of `embed`, `knn_lm`, `train`: JSONL paths or globs; '': the built-in
    # corpus.
    texts='',
    # Of `knn_lm`: build | speed | retomaton; '': all. What the work directory
    # has of them is not measured again. Its model is model.path, or one of
    # random weights with the tokenizer train.tokenizer, or of the texts.
    parts='',
    documents=0,  # 0: the shape's own, as neighbors.
    neighbors=0,
    repeats=3,  # Timed runs of each side, in turns.
    # On CPU, try which settings of threads and memory make the rival fastest;
    # False: take those that mostly do.
    try_settings=True,
  )
  config.distances = _section(
    # Of eval.documents to their retrieval.neighbors nearest, in random parts of
    # the store: each holds those before it, and as many documents as there are
    # neighbours, or more.
    fractions='0.05,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0',
    # Of the documents, whose distances are compared with; a pair of a document
    # with itself is not among them.
    pairs=10_000,
  )
  config.plan = _section(
    # Of a store that is only thought of. GB are 10^9 bytes.
    documents=0,  # 0: those of corpus.train.
    dim=0,  # 0: the embedder's, or 1024 where embedder.path is empty.
    # Files, each with an index of its own; 0: those of corpus.train, else 30.
    shards=0,
    # Mean of a document; 0: that of a sample of corpus.train, else the Pile's.
    text_bytes=0.0,
    # Mean of a document that the embedder sees; 0: a fourth of text_bytes, at
    # most the embedder's positions (512 where embedder.path is empty).
    tokens=0.0,
    # Of the embedder, without its embedding tables; 0: counted, or those of
    # RoBERTa-large.
    parameters=0,
    lists=0,  # Of IVF, in each file; 0: about 16 sqrt(documents of a file).
    nprobe=0,  # Lists searched; 0: 32, or all if there are less.
    pq=64,  # Bytes of a product quantiser's code.
    queries=256,  # Searched at once.
    ram=256.0,  # GB of a search host that may be used.
    hosts=0,  # Of a replica; 0: as many as hold the index in memory.
    replicas=1,
    # Rates of a host; 0: measured here. Cores count for what is measured of
    # products and codes; 0: as many as here.
    cores=0,
    scan_rate=0.0,  # GB/s of reading memory.
    host_gflops=0.0,  # GFLOP/s of a float32 matrix product.
    disk_rate=3.0,  # GB/s of reading and writing files.
    # What embeds, and assigns vectors to lists: TFLOP/s of one, as its makers
    # say, and the share that is reached.
    accelerators=8,
    accelerator_tflops=989.0,
    utilization=0.4,
    # Documents a second that one accelerator embeds; 0: by the three above and
    # two operations a parameter and token.
    embed_rate=0.0,
  )
  config.pipeline = _section(
    # (name, {key: value}) a step: a job with its overrides of this config.
    steps=(),
  )
  return config.lock()


def _section(**values) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(values)
