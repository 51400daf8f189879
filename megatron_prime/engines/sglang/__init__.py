"""The engine of SGLang servers, for training at scale.

- `access`: the run's secret and the API keys that follow from it
- `balancer`: distributes groups of responses over servers
- `build`: builds the engine of a run and its weight sync
- `child`: guardian process that ends a server together with its trainer
- `client`: HTTP client of one server
- `disk_loading`: servers load checkpoints from files
- `driver`: collective calls in which rank 0 does the work
- `engine`: the implementation of `rollout.engine.Engine`
- `fleet`: tracks which servers are up and recovers the others
- `generation`: the groups of one stream on a fleet
- `group_stream`: prompts that are being sampled, as all ranks see them
- `launch`: command line, environment and files of a server
- `loader`: the package that runs inside the servers and receives weights
- `memory`: frees and allocates the memory of colocated servers
- `nodes`: servers on every node of the job
- `resources`: the GPUs and cores of a node, as all its training ranks know them
- `routing`: reads the experts that a server routed tokens to
- `sampling`: requests to SGLang and its answers
- `scoring`: log-probs of given responses from servers of one fixed model each
- `server`: supervises one server process
- `versions`: names of served weights, each bound to one server process and one proven update
- `weights`: the training ranks' side of weight syncs
"""
