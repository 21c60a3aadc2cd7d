#!/bin/sh
# Called by udhcpc with the lease in the environment.
case "$1" in
    deconfig)
        ip addr flush dev "$interface"
        ip link set "$interface" up
        ;;
    bound | renew)
        ip addr flush dev "$interface"
        ip addr add "$ip/$mask" dev "$interface"
        [ -z "$router" ] || ip route replace default via "${router%% *}"
        echo "testenv: $interface $ip from $serverid"
        ;;
esac
