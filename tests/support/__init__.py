"""What tests share: models, data, servers and reference numbers made small."""
