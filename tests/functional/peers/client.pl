# A client of Perl's Gearman library: client.pl HOST PORT [CERT KEY CA]
# Submits a job that must succeed and, once that has, one that must fail; says how they went.
use strict;
use warnings;
use Gearman::Client;

my ($host, $port, $cert, $key, $ca) = @ARGV;
my %server = (host => $host, port => $port);
%server = (%server, use_ssl => 1, cert_file => $cert, key_file => $key, ca_file => $ca) if $cert;
my $client = Gearman::Client->new(job_servers => [\%server], exceptions => 1);
for my $argument ('abc', '') {
    my $tasks = $client->new_task_set;
    $tasks->add_task(
        lease_test => $argument,
        {
            on_status    => sub { print "status @_\n" },
            on_complete  => sub { print "complete ${$_[0]}\n" },
            on_exception => sub { print "exception ", "@_" =~ /([a-z ]{4,})/, "\n" },
        }
    );
    $tasks->wait(timeout => 10);
}
exit if $cert;    # no role may submit a job that can wait in the background
my $handle = $client->dispatch_background('later', 'x', { uniq => 'one' });
my $again  = $client->dispatch_background('later', 'x', { uniq => 'one' });
my $status = $client->get_status($handle);
printf "background known %d running %d same %d\n",
    $status->known, $status->running, $handle eq $again;
