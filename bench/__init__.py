"""Speed and scale, measured side by side in the lab's namespaces; `bench/run.sh` runs all of it."""
