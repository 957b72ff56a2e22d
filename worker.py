"""Execute the tool calls that agents submit to Nexum, and the runs that `demo.py --detach` hands over.

    python worker.py [--concurrency 8] [--offline]

Start as many as you like, kill them when you like: a call whose worker dies is handed to another within seconds.
You will see `Connected to Nexum at localhost:50051.`, and then each call as it is executed.
"""

from offline import ctrl_c

if __name__ == "__main__":
    ctrl_c.listen()  # from the first moment on

import argparse

from demo import build_agent
from nexum_agents import serve
from offline import webpage
from offline.choosing import choose_model, model_of
from tools import TOOLS
from workflow import REPORT


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the tool calls that agents submit to Nexum.")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="calls at once (default 8)")
    parser.add_argument("--offline", action="store_true", help="never use the network: only the offline web")
    parser.add_argument("--log-json", action="store_true", help="log one JSON object per line")
    arguments = parser.parse_args()
    if arguments.concurrency < 1:
        parser.error("--concurrency must be at least 1")
    if arguments.offline:
        webpage.go_offline()
    agent = build_agent(model_of(*choose_model(arguments.offline)))
    serve(TOOLS, agents=[agent], workflows=[REPORT], concurrency=arguments.concurrency, log_json=arguments.log_json)


if __name__ == "__main__":
    main()
