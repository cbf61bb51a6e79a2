"""The property names that the MultiLangDaemon of amazon_kclpy 3.1.3 knows.

Source: the setters of MultiLangDaemonConfiguration and its beans, and the three names that MultiLangDaemonConfig
reads itself; a test holds this list to the jar. The daemon ignores any other name in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from metering.errors import SetupError

KNOWN = frozenset(
    """
    executableName processingLanguage maxActiveThreads
    AwsCredentialsProvider AwsCredentialsProviderDynamoDB AwsCredentialsProviderCloudWatch
    applicationName streamName streamArn tableName workerId workerIdentifier regionName kinesisEndpoint dynamoDBEndpoint
    initialPositionInStream initialPositionInStreamExtended retrievalMode
    failoverTimeMillis leaseAssignmentIntervalMillis enablePriorityLeaseAssignment
    leaseTableDeletionProtectionEnabled leaseTablePitrEnabled shardSyncIntervalMillis cleanupLeasesUponShardCompletion
    ignoreUnexpectedChildShards maxLeasesForWorker maxLeasesToStealAtOneTime initialLeaseTableReadCapacity
    initialLeaseTableWriteCapacity maxLeaseRenewalThreads listShardsBackoffTimeInMillis maxListShardsRetryAttempts
    callProcessRecordsEvenForEmptyRecordList parentShardPollIntervalMillis
    skipShardSyncAtWorkerInitializationIfLeasesExist schedulerInitializationBackoffTimeMillis clientVersionConfig
    taskBackoffTimeMillis logWarningForTaskAfterMillis
    metricsBufferTimeMillis metricsMaxQueueSize metricsLevel metricsEnabledDimensions
    validateSequenceNumberBeforeCheckpointing shutdownGraceMillis timeoutInSeconds
    retryGetRecordsInSeconds maxGetRecordsThreadPool idleTimeBetweenReadsInMillis
    millisBehindLatestThresholdForReducedTps maxRecords
    gracefulLeaseHandoffTimeoutMillis isGracefulLeaseHandoffEnabled
    inMemoryWorkerMetricsCaptureFrequencyMillis workerMetricsReporterFreqInMillis noOfPersistedMetricsPerWorkerMetrics
    disableWorkerMetrics maxThroughputPerHostKBps dampeningPercentage reBalanceThresholdPercentage
    allowThroughputOvershoot varianceBalancingFrequency workerMetricsEMAAlpha staleWorkerMetricsEntryCleanupDuration
    workerMetricsTableName workerMetricsBillingMode workerMetricsReadCapacity workerMetricsWriteCapacity
    workerMetricsPointInTimeRecoveryEnabled workerMetricsDeletionProtectionEnabled workerMetricsTags
    coordinatorStateTableName coordinatorStateBillingMode coordinatorStateReadCapacity coordinatorStateWriteCapacity
    coordinatorStatePointInTimeRecoveryEnabled coordinatorStateDeletionProtectionEnabled coordinatorStateTags
    """.split()  # noqa: SIM905 - as text it is easy to compare with the source
)


def refuse_unknown(names: Iterable[str], source: str) -> None:
    """Raise SetupError for the first name that the daemon does not know; `source` says where it stands."""
    for name in names:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SetupError(f"{source}: the KCL knows no property {name!r}{hint}")
