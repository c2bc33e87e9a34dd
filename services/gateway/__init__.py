"""The edge of the platform: public REST, made from the protos."""
