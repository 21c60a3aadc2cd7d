# A worker of Perl's Gearman library: worker.pl HOST PORT [CERT KEY CA]
# Reverses what it gets, after a status; dies over an empty argument.
# Over TLS it sends no status: the library waits for ever for a packet that has come in one TLS record
# with the one before.
use strict;
use warnings;
use Gearman::Worker;

my ($host, $port, $cert, $key, $ca) = @ARGV;
my %server = (host => $host, port => $port);
%server = (%server, use_ssl => 1, cert_file => $cert, key_file => $key, ca_file => $ca) if $cert;
my $worker = Gearman::Worker->new(job_servers => [\%server], client_id => 'perl/1');
$worker->register_function(
    lease_test => sub {
        my $job = shift;
        $job->set_status(1, 2) unless $cert;
        die "nothing to do\n" unless length $job->arg;
        return scalar reverse $job->arg;
    }
);
$worker->work;
