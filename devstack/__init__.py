"""The local stack: DynamoDB Local and kinesis-mock, what installs them and what starts them."""
