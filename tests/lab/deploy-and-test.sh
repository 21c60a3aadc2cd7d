#!/bin/sh
# What a CI job runs inside a lease in the demo: reads the data file, waits for the seed, has a node
# powered on, and waits until that node has booted from the seed over the private bridge.
set -eu

echo "environment $(jq -r .testenv.lease.environment "$TE_DATAFILE"):"
jq -r '
    ["machine", "network", "MAC", "IP", "bridge"],
    (.testenv | (.seed, .nodes[]) | .name as $name | .nics[]
        | [$name, .network, .mac, .ip // "from the seed", .bridge])
    | @tsv' "$TE_DATAFILE" | column -t -s "$(printf '\t')"

seed_ip=$(jq -r '."seed-ip"' "$TE_DATAFILE")
curl -fsS --retry 60 --retry-delay 1 --retry-all-errors --connect-timeout 1 \
    -o /dev/null "http://$seed_ip/" 2>/dev/null
echo "the seed answers at $seed_ip"

# Power management over the network comes with the gateway. Until then a person with libvirt's own
# tools on the host does it: here, whoever reads the pipe $POWER_ON.
node=$(jq -r '.nodes[0].name' "$TE_DATAFILE")
mac=$(jq -r '.nodes[0].ports[0].address' "$TE_DATAFILE")
echo "$(jq -r .testenv.host "$TE_DATAFILE") $node" >"$POWER_ON"
deadline=$(($(date +%s) + 120))
until curl -fsS -m 2 "http://$seed_ip/nodes" 2>/dev/null | grep "$mac"; do
    [ "$(date +%s)" -lt "$deadline" ] || { echo "node $node did not report" >&2; exit 1; }
    sleep 1
done
echo "node $node booted from the seed"
