#!/bin/bash
# shellcheck disable=SC2086
exec /opt/jre/bin/java ${KAFKA_HEAP_OPTS:-} ${KAFKA_LOG4J_OPTS:-} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
  -cp '/opt/kafka/libs/*' kafka.Kafka "$@"
