#!/usr/bin/env bash
# Makes DIR/tls.pem and DIR/tls.key for a server on loopback, signed by the CA of a folder. What is there already stays.
#
#   certificate.sh CA_DIR DIR SERVER_NAME
set -euo pipefail
ca=$1 dir=$2 host=${3%:*}
mkdir -p "$ca"
# Servers that are started together share the CA.
exec 9>"$ca/lock"
flock 9
if [ ! -e "$ca/ca.pem" ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -sha256 -subj "/CN=Hearth test CA" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$ca/ca.key" -out "$ca/ca.pem" 2>/dev/null
fi
if [ ! -e "$dir/tls.pem" ]; then
    case $host in
    *[!0-9.]*) own="DNS:$host" ;;
    *) own="IP:$host" ;;
    esac
    openssl req -newkey rsa:2048 -nodes -sha256 -subj "/CN=$host" \
        -keyout "$dir/tls.key" -out "$dir/tls.csr" 2>/dev/null
    printf 'subjectAltName=%s,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' \
        "$own" >"$dir/tls.ext"
    openssl x509 -req -in "$dir/tls.csr" -days 30 -sha256 -CA "$ca/ca.pem" -CAkey "$ca/ca.key" -CAcreateserial \
        -extfile "$dir/tls.ext" -out "$dir/tls.pem" 2>/dev/null
fi
